"""The embedded model "shapes": its scenes, its training, its measure."""
