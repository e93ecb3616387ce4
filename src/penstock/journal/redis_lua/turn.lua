-- Read a turn's record: a list of its id and seven fields, or nil.

return record(id)
