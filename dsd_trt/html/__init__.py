"""Reports as one HTML file each, which needs no network and runs no script but its own."""
