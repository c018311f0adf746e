"""A new voice for a video: shots, faces, and what is set into its frames."""
