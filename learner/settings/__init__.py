"""What a user sets of the learner: its ranks, the model, and each method; imports no torch."""
