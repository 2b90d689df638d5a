"""The embedded model "shapes": its scenes, data sets, training and evaluation."""
