"""What a training run would cost, before any row is read: `sealgate train CONFIG.toml --plan`.

    figures   epsilon, noise and what they mean, for the configuration and for others near it
    timing    seconds and memory, by a few steps on made-up rows of the declared shapes
    told      both in words and tables

Trusts: the configuration's public constants. Never: opens the data.
"""
