"""Parts of `dsd_score` and `dsd_rank_texts`: copied into the models, and run by the server."""
