"""The parts of DP-SGD, each a seam of its own: what is drawn, what is clipped, what is added, what is learnt from it.

    modes, book_keeping    the clipped sum of per-example gradients, by whichever way is cheapest for a model
    choice                 which way that is, measured on random data
    gradient_sum           the same in parts of bounded memory, over examples or over all rows of a person
    noise                  continuous Gaussian, or discrete Gaussian on a public grid
    updates, schedule      what an optimizer makes of noisy sums (post-processing)
    distributed, sharding  the same on several processes, which share rows, or weights too
    checkpoint             what a run needs to go on after a crash

`training.private_sgd` puts them together and tells the story of a step.
"""
