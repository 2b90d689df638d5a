"""Matrix mode that estimates pair mode's scores: token heads, and lists measured with them."""
