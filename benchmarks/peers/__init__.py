"""What the peers that people use today add to a training step, each in an environment of its own.

    python -m benchmarks.peers [--peers fastai wandb] [--rounds 9] [--steps 20] [--threads 1]

`table.py` says who they are and how each is driven, `timing.py` times one inside its environment
(where deadwatch is not installed), `environments.py` makes the environments and starts the timing.
"""
