"""Web page to decompose an image, edit its layers and download them. Gradio is imported here only."""
