"""The modules behind the declared architectures, a file for each kind: the whole of each model, weights at zero.

What holds for all: weights start at zero and are filled by whoever trains or loads; `forward` takes tensors whose first
dimension is the rows and returns logits [n, logits]; no row's answer depends on another's. No BatchNorm, no dropout, no
random numbers, no files, nothing kept between two calls.
"""
