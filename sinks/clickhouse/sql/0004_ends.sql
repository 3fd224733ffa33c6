-- Where the rows of each partition end, kept by the server beside each part of the two tables that grow without end: a
-- loader that begins asks for it, and without it reads through three columns of the whole table. A merge of equal rows
-- makes it anew.
ALTER TABLE changes_rows MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild', lightweight_mutation_projection_mode = 'rebuild';

ALTER TABLE outcomes_rows MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild', lightweight_mutation_projection_mode = 'rebuild';

ALTER TABLE changes_rows ADD PROJECTION IF NOT EXISTS ends (SELECT topic_id, partition, max(offset) GROUP BY topic_id, partition);

ALTER TABLE outcomes_rows ADD PROJECTION IF NOT EXISTS ends (SELECT topic_id, partition, max(offset) GROUP BY topic_id, partition);

-- For rows that stood before. The server does it beside its other work, and merges parts of before and after when it is done.
ALTER TABLE changes_rows MATERIALIZE PROJECTION ends;

ALTER TABLE outcomes_rows MATERIALIZE PROJECTION ends;
