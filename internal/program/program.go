// Package program is what the commands of berth have in common: how a command line ends, and how its help reads.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit statuses of a program that did not do what it was asked to do. One that a signal has ended exits with 128 and
// the number of the signal, as shells count: 130 after SIGINT.
const (
	// StatusFailed is that of every other error.
	StatusFailed = 1
	// StatusUsage is that of a command line that cannot be understood. Nothing was done.
	StatusUsage = 2
	// signalled is added to the number of a signal.
	signalled = 128
)

// statusError is an error with the exit status that it ends a program with.
type statusError struct {
	error
	status int
}

func (e *statusError) Unwrap() error { return e.error }

// WithStatus gives an error an exit status of its own; nil stays nil.
func WithStatus(status int, err error) error {
	if err == nil {
		return nil
	}
	return &statusError{err, status}
}

// Usage says that an error is one of the command line: a value of a flag or an argument that cannot be understood.
func Usage(err error) error { return WithStatus(StatusUsage, err) }

// Main runs the command line of the process and returns its exit status. The context of the command ends with the first
// SIGINT or SIGTERM; a second one kills the process.
func Main(root *cobra.Command) int {
	ctx, ended, stop := untilSignal()
	defer stop()
	wrapHelp(root, helpColumns(os.Stdout))
	return run(ctx, root, ended, os.Stderr)
}

func run(ctx context.Context, root *cobra.Command, ended func() unix.Signal, stderr io.Writer) int {
	began := false
	prepare(root, &began)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	status := StatusFailed
	if own := (*statusError)(nil); errors.As(err, &own) {
		status = own.status
	} else if !began {
		status = StatusUsage // of the checks before a command's own code, which are all about its arguments and flags
	} else if s := ended(); s != 0 {
		status = signalled + int(s)
	}
	fmt.Fprintf(stderr, "%s: %s\n", root.Name(), OneLine(err))
	if status == StatusUsage {
		fmt.Fprintf(stderr, "%s --help says how it is used\n", cmd.CommandPath())
	}
	return status
}

// prepare notes when the code of a command begins, and makes a command that only has others refuse what it does not
// know.
func prepare(cmd *cobra.Command, began *bool) {
	if own := cmd.RunE; own != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*began = true
			return own(cmd, args)
		}
	} else if cmd.HasParent() && cmd.HasSubCommands() {
		cmd.Args, cmd.DisableFlagsInUseLine = cobra.NoArgs, true
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, c := range cmd.Commands() {
		prepare(c, began)
	}
}

// untilSignal gives a context that ends with the first signal, and a function that says which one that was.
func untilSignal() (_ context.Context, ended func() unix.Signal, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals) // the next one is the kernel's to answer
			cancel(signalError{s})
		case <-ctx.Done():
		}
	}()
	ended = func() unix.Signal {
		var cause signalError
		if !errors.As(context.Cause(ctx), &cause) {
			return 0
		}
		s, _ := cause.Signal.(unix.Signal) // every signal that the kernel knows is one
		return s
	}
	return ctx, ended, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// signalError is why a context ended.
type signalError struct{ os.Signal }

func (e signalError) Error() string { return "signal: " + e.String() }

// AddVersion gives a program the flag --version and the command version, which print its name and this text.
func AddVersion(root *cobra.Command, text string) {
	root.Version = text
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.AddCommand(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", root.Name(), text)
			return err
		},
	})
}
