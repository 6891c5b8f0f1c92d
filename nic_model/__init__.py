"""Image captioning models: Show and Tell (NIC), their training, search and metrics. PyTorch only."""
