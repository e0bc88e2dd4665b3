"""Normalization and pooling on a CPU, twice differentiable, in C++."""
