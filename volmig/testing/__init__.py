"""What volmig offers to the tests of those who embed it or write drivers for it."""
