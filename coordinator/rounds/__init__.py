"""The round on the coordinator's side: pure states and transitions."""
