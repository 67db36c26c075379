"""What several scripts share: data, networks, heads, mutations, and how a record is written."""
