"""Training steps: parallel plans, operators with their backward, memory per rank, collectives, iteration time, failures."""
