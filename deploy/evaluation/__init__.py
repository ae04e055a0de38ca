"""What a policy is worth: scores and signals of held-out pictures, and what follows from them."""
