"""A fake CUDA device for the CPU build of torch, and the tests that need one.

`python -m tests.fake_gpu` runs the tests of `tests/gpu`, the engine's unit tests, and those of this
folder on it, in a process of its own: torch believes in the device from its import on.
"""
