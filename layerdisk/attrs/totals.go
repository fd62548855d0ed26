package attrs

// Totals counts the inodes of a listing, the root included, and the bytes of its regular files, hard links once.
func Totals(entries []Entry) (inodes, bytes int64) {
	for i := range entries {
		e := &entries[i]
		if e.HardLink != "" {
			continue
		}
		inodes++
		if e.Type == Regular {
			bytes += e.Size
		}
	}
	return inodes, bytes
}
