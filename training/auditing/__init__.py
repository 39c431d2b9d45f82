"""The audit gate: attacks on the training code, with a run's constants, that decide whether its bundle is signed.

A certificate is computed from what the trainer says it does. The gate watches what it does: it runs the very function
that will train the model on made-up rows ("lanes", one parameter for each canary), and compares what an attacker who
sees every step could learn with what the certificate will claim. It never sees the private rows, so its outcome costs
no privacy and it runs before any privacy is spent.

    probes.py      what a probe is, how it ends, exact binomial bounds
    subject.py     what is audited: the trainer and the public constants of its run
    lanes.py       the module and the rows of lanes, and running the trainer on them
    claimed.py     the trade-off curve that the claim allows
    membership.py  lanes under fresh randomness: who was in? and: noise and contributions as declared?
    replay.py      the same randomness twice: participation, clipping, constants that depend on the data
    neighbours.py  the run's own architecture: no example moves the sum by more than the clip norm
    freshness.py   nothing repeats, whatever is seeded
    gate.py        all of them, the verdict and the certificate's part
    repeated.py    mechanisms that release once: run again and again on neighbouring data
    plans.py       from a plan to the audit that suits it
    statistics.py  what is computed of the rows before training: bounded, noisy as declared, and fresh

    black_box.py   attacks on the finished model alone: a report, never a gate
"""
