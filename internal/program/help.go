package program

import (
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Help texts are as wide as the terminal, within these columns.
const (
	minHelpColumns = 60
	maxHelpColumns = 100
)

// helpColumns is how wide help texts are on a file such as standard output.
func helpColumns(out *os.File) int {
	width, _, err := term.GetSize(int(out.Fd()))
	if err != nil {
		return maxHelpColumns
	}
	return min(max(width, minHelpColumns), maxHelpColumns)
}

// wrapHelp makes the help of a command and of those below it fit into the columns.
func wrapHelp(root *cobra.Command, columns int) {
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped "+strconv.Itoa(columns)))
	wrapLong(root, columns)
}

func wrapLong(cmd *cobra.Command, columns int) {
	cmd.Long = wrap(cmd.Long, columns)
	for _, c := range cmd.Commands() {
		wrapLong(c, columns)
	}
}

// wrap breaks the lines of each paragraph anew. Lines that begin with a space, such as those of a list, stay as they
// are, and so does an empty line.
func wrap(text string, columns int) string {
	var out, line strings.Builder
	end := func() {
		if line.Len() > 0 {
			out.WriteString(line.String() + "\n")
			line.Reset()
		}
	}
	for l := range strings.SplitSeq(text, "\n") {
		if l == "" || strings.HasPrefix(l, " ") {
			end()
			out.WriteString(l + "\n")
			continue
		}
		for word := range strings.FieldsSeq(l) {
			if line.Len() > 0 && utf8.RuneCountInString(line.String())+1+utf8.RuneCountInString(word) > columns {
				end()
			}
			if line.Len() > 0 {
				line.WriteByte(' ')
			}
			line.WriteString(word)
		}
	}
	end()
	return strings.TrimSuffix(out.String(), "\n")
}
