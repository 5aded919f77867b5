"""What a person can look at: plots, search trees and the report page of a run."""
