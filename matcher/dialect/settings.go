package dialect

import "cmp"

// Settings are how the pods of a node are read: in which dialects, and what holds where neither the pod nor its dialect
// says anything. docs/matching.md tells how berthd is given them.
type Settings struct {
	Table Table
	// AutoMatch, Assume and StrictConflict are Input's for every pod.
	AutoMatch      bool
	Assume         string
	StrictConflict bool
}

// Parse reads one pod as Table does.
func (s Settings) Parse(in Input) (Request, []string, error) {
	in.AutoMatch = in.AutoMatch || s.AutoMatch
	in.Assume = cmp.Or(in.Assume, s.Assume)
	in.StrictConflict = in.StrictConflict || s.StrictConflict
	return s.Table.Parse(in)
}
