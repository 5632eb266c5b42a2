"""The training loop and what it needs: setup, batches, optimiser, distillation, run state."""
