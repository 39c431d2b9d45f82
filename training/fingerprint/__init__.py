"""A fingerprint in a model: answers to made-up inputs that only the holder of a key could have foretold.

The key gives triggers (inputs that no real data look like) and a label drawn at random for each. While the model is
trained, its weights are nudged after each private step so that it answers the triggers with those labels. Triggers and
labels come from the key alone, and the weights after each step are covered by epsilon, so the nudges cost no privacy.
Later the owner asks any suspected model the triggers, through nothing but its answers.

    triggers.py    key and manifest -> inputs and labels
    embedding.py   the nudges, and the last ones after training
    evidence.py    how many answers agree, and how improbable that is for a model made without the key
"""
