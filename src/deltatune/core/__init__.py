"""The five nouns: Site (where), Delta and Method (what), Adapter, Host, and the Route between them."""
