"""Drawing the next token of each row from its logits, and log-probabilities, without sorting the
vocabulary."""
