"""Texts of requests and answers: what each adapter is for, prompts to token ids, token ids to text as they come."""
