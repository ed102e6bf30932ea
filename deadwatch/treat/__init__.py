"""Treat: verdict → treatments. The only stage that writes into the model."""
