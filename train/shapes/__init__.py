"""The demonstration, "shapes": its scenes, data sets, training and evaluation."""
