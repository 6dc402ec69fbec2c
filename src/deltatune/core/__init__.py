"""The five nouns: Site, Delta, Method, Adapter and Host; and the Route, which adapters act on which rows."""
