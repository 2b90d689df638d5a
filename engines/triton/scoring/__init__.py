"""Parts of `dsd_score`: copied into its model, and run by the server."""
