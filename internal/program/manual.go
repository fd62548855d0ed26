package program

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// AddManual gives a program the hidden command "manual DIRECTORY", which writes a manual page of each command: for
// "make install" and for packages.
func AddManual(root *cobra.Command) {
	root.AddCommand(&cobra.Command{
		Use:    "manual DIRECTORY",
		Short:  "Write manual pages",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return writePages(root, args[0]) },
	})
}

func writePages(cmd *cobra.Command, dir string) error {
	path := filepath.Join(dir, pageName(cmd)+".1")
	err := os.WriteFile(path, []byte(page(cmd)), 0o644) //nolint:gosec // for everybody to read
	if err == nil {
		err = os.Chmod(path, 0o644) //nolint:gosec // whatever the mask is
	}
	errs := []error{err}
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" {
			errs = append(errs, writePages(c, dir))
		}
	}
	return errors.Join(errs...)
}

// pageName is berth-catalog-add for "berth catalog add".
func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// page is one in the macros of man(7).
func page(cmd *cobra.Command) string {
	cmd.InitDefaultHelpFlag()
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"%s\"\n", strings.ToUpper(roff(pageName(cmd))), roff(cmd.Root().Name()+" "+version(cmd.Root())))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(pageName(cmd)), roff(cmd.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.nf\n%s\n", roff(cmd.UseLine()))
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "%s COMMAND\n", roff(cmd.CommandPath()))
	}
	b.WriteString(".fi\n")
	if cmd.Long != "" {
		b.WriteString(".SH DESCRIPTION\n")
		paragraphs(&b, cmd.Long)
	}
	options := func(head string, flags *pflag.FlagSet) {
		if !flags.HasAvailableFlags() {
			return
		}
		fmt.Fprintf(&b, ".SH %s\n", head)
		flags.VisitAll(func(f *pflag.Flag) { option(&b, f) })
	}
	options("OPTIONS", cmd.NonInheritedFlags())
	options("OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	}
	var others []string
	if cmd.HasParent() {
		others = append(others, pageName(cmd.Parent()))
	}
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" {
			others = append(others, pageName(c))
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(&b, ".SH SEE ALSO\n%s(1)\n", roff(strings.Join(others, "(1), ")))
	}
	return b.String()
}

// version is the first word of a program's.
func version(root *cobra.Command) string {
	first, _, _ := strings.Cut(root.Version, ",")
	return first
}

func option(b *strings.Builder, f *pflag.Flag) {
	if f.Hidden || f.Deprecated != "" {
		return
	}
	kind, usage := pflag.UnquoteUsage(f)
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	if kind != "" {
		name += " " + kind
	}
	fmt.Fprintf(b, ".TP\n\\fB%s\\fR\n%s\n", roff(name), roff(strings.ReplaceAll(usage, "\n", " ")))
	switch f.DefValue {
	case "", "false", "0", "0s", "[]":
	default:
		fmt.Fprintf(b, "(default %s)\n", roff(f.DefValue))
	}
}

// paragraphs writes text; lines that begin with a space stay as they are.
func paragraphs(b *strings.Builder, text string) {
	listed := false
	for line := range strings.SplitSeq(text, "\n") {
		if list := strings.HasPrefix(line, " "); list != listed {
			if listed = list; list {
				b.WriteString(".nf\n")
			} else {
				b.WriteString(".fi\n")
			}
		}
		if line == "" {
			b.WriteString(".PP\n")
			continue
		}
		b.WriteString(roff(line) + "\n")
	}
	if listed {
		b.WriteString(".fi\n")
	}
}

// roff escapes what has a meaning to roff: backslashes, hyphens, which would be typeset as dashes, characters that are
// not ASCII, and a full stop or an apostrophe at the beginning of a line.
func roff(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r > unicode.MaxASCII:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	lines := strings.Split(b.String(), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
