"""What the coordinator keeps: a relational database and a folder of content-addressed blobs."""
