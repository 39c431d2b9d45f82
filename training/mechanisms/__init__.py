"""The mechanisms that a model can be trained with: a plan from public constants, its account, and the training.

    plans        `[privacy] mechanism` to a plan: what `sealgate train` asks
    sgd          DP-SGD: every family
    adassp       noisy sufficient statistics: linear regression
    objective    a noisy convex objective: logistic regression with two classes
    selection    the best of a random number of runs of DP-SGD

Which suits when: AdaSSP and objective perturbation train in milliseconds and have nothing to tune; where the signal is
strong and the rows are many DP-SGD does as well or better. Trusts: public constants. Never: looks at rows to plan.
"""
