"""The routes: what a request asks, read and checked, and its answer in OpenAI's form."""
