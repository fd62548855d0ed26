// Package vm tests berth on disks that are plugged into a virtual machine and pulled out while it runs: "make test-vm".
package vm
