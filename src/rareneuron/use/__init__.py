"""What can be done with the neurons of a run: switch them off, look, take the edited model away."""
