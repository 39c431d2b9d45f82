"""Epsilon from a mechanism's public constants, one module per kind of mathematics.

    account      what every account can do, and the composition with separately counted statistics
    releases     Gaussian releases without sampling, alone or with sampled steps: AdaSSP, aggregation perturbation
    objective    objective perturbation
    selection    the best of several runs
    statistics   what preprocessing took from the rows
    curves       what an account allows an attacker

Sampled Gaussian steps, the case of DP-SGD, are `sealgate.certificate.recompute`. `described` finds the account of a
whole certificate. Trusts: nothing. Never: reads what a certificate states as its epsilon.
"""
