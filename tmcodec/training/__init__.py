"""Training of tokenizers: data, losses, stages, recipes. Nothing here runs at encode or decode."""

from tmcodec.training.torchvision_operators import stand_in

stand_in()
