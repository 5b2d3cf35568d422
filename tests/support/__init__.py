"""Networks, trainings, data trees and cases that tests share."""
