"""Editability: the same edits replayed on predicted and on true layers, and the two results compared.

For every true peel and every kind of edit, both stacks are edited and flattened over white, and the flat images are
compared by PSNR and LPIPS. No published protocol is followed; the choices and their reasons are:

**Units of editing: peels**, groups of true layers that do not overlap, as in the main metric (LayerD protocol, sec.
1.2). Layers of a peel have no order among themselves, so an image does not show whether they are one layer or many.
The network therefore predicts as many layers as there are peels. Layers that are visible nowhere are left out, since
the image holds nothing of them.

**Predicted layers of a peel** (:func:`.edits.counterparts`): a user takes all layers in which they see the object.
So the soft IoU of visible shares is computed between a predicted layer and each peel, and each member of a peel. The
layer belongs to the peel of the largest. IoU is used instead of overlap, because a small object in a layer with haze
overlaps the background most. Visible shares are used instead of alpha, because a copy hidden under the object is not
seen and so not taken; it appears once the object is gone. It follows that

- an object split over two layers is edited as a whole;
- two objects in one layer are edited together: the layer belongs to the object it resembles more. The other object has
  no layer and its edits cannot be made;
- an edit that cannot be made leaves the image as it was. Editing the layer that holds most of the object instead would
  also change all else in that layer. ``psnr_changed`` ignores the rest of the image, so it would reward this.
  ``reached`` is the share of edits that could be made;
- in the composite baseline the only layer stands for the peel that fills most of the image; no other can be edited.

**Edits** are deterministic and have no parameter that depends on a stack, so both sides get the same one:

==========  ==========================================================================  ====================
kind        effect                                                                      applied to peels
==========  ==========================================================================  ====================
delete      removed                                                                     all
move        right and down by an eighth of the canvas, whole pixels; what leaves the    all but the bottom
            canvas is lost, what comes in is transparent
recolour    each colour becomes its negative, 1 - value                                 all
fade        alpha times 0.5                                                             all
reorder     moved to the top                                                            all but bottom and top
==========  ==========================================================================  ====================

Bottom and top are those of the visible peels. The bottom one stays in place: nobody moves a background, and on top it
would hide everything. The negative also changes black and white, unlike a change of hue. It keeps colour differences,
and as an affine map it does not depend on how an object is split. An edit that changes no pixel of the true image by
more than :data:`.scores.CHANGE` is left out, such as deleting white on white. A kind without edits is absent, never 0.

Where a prediction flattens to the image exactly, fading an object in one layer has the PSNR of deleting it plus 6.02
dB. The reason is that half alpha gives the mean of the image with and without it. So ``fade`` adds information by LPIPS
only, or by PSNR where layers do not flatten to the image or overlap.
"""
