"""What is computed of the private rows before training, each with its share of the budget, and public encodings.

`encoding` turns categories and dates into columns by public lists and ranges: it costs nothing. `sections` reads what a
configuration asks to be computed: scales of columns, categories, a vocabulary. `counting` makes those releases, exactly
on integers. `statistics` says before training what they cost, and after reading fills the configuration's blanks.
"""
