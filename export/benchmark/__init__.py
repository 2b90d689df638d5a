"""How fast a bundle scores, against what else one could do, in one run on one machine."""
