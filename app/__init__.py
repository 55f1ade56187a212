"""The page: drop an image, look at its layers, edit them, download them. Gradio is imported here only."""
