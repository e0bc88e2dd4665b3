"""Ways to compute a meta-batch: faster or smaller, equal to the loop."""
