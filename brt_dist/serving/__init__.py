"""An HTTP server for a trained model, compatible with OpenAI's completions."""
