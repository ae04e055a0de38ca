"""The policy, its surrogate reward, the methods that improve them, and the training loop."""
